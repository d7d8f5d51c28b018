-- An entry that a probe saw has another content in the end.
UPDATE probe_entries SET digest = md5('another content')
WHERE entry_id = (SELECT min(entry_id) FROM probe_entries);
