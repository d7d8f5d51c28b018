-- After the fault was healed nothing succeeded any more.
UPDATE attempts SET type = 'info', status = NULL, error = 'timeout'
WHERE complete_ns > (SELECT max(to_ns) FROM fault_windows);
