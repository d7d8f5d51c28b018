"""The chain: an embedded development node that executes EVM bytecode, the contracts, and their client."""
