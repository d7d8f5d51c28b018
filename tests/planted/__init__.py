"""Known defects, each put into the reference system to prove that the invariant of its name sees it.

A patch is `<invariant>.sql`, run by the database's owner after the installation, or `<invariant>.py`, whose
`plant()` changes the server before it serves, or both. Its first line says what a team might really have
done wrong. None of it is reachable from the production code.
"""
