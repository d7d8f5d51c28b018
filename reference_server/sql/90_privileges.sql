-- Who may do what: the server executes the functions listed here, the judge reads the books, nobody else
-- anything. The roles exist before this file is run.

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA public FROM public;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM public;
REVOKE CREATE ON SCHEMA public FROM public;
REVOKE ALL ON SCHEMA books FROM public;

-- The owner too; a superuser still meets the triggers.
REVOKE UPDATE, DELETE, TRUNCATE ON ledger_entries, transactions, trades, price_history FROM current_user;

GRANT USAGE ON SCHEMA public TO seatrial_server;
GRANT EXECUTE ON FUNCTION
execute_trade_batch,
execute_trade_optimistic,
execute_trade_lmsr,
sell_shares_lmsr,
api_authenticate,
api_create_user,
api_fund,
api_create_market,
api_close_market,
api_markets,
api_market,
api_account,
api_account_ledger,
api_account_reconciliation
TO seatrial_server;

GRANT USAGE ON SCHEMA books TO seatrial_judge;
GRANT SELECT ON ALL TABLES IN SCHEMA books TO seatrial_judge;
