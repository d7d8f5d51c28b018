-- A market was closed before its last trade.
UPDATE markets SET closed_version = version - 1 WHERE status = 'closed';
