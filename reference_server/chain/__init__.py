"""The chain: an embedded development node that executes real EVM bytecode, the contracts, and their client."""
