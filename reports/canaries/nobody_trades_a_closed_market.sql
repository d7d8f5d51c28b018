-- A market was closed before its last trade.
UPDATE markets SET closed_version = version - 2 WHERE status = 'closed';
