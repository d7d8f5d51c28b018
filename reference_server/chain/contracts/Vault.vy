# pragma version 0.4.3
# pragma evm-version cancun
"""
@title The custody vault: takes deposits for users, pays each withdrawal of the operator once.
@license Apache-2.0
"""

from ethereum.ercs import IERC20

event Deposit:
    sender: indexed(address)
    user_id: String[64]
    amount: uint256

event Withdrawal:
    withdrawal_id: indexed(bytes32)
    receiver: indexed(address)
    amount: uint256

token: public(immutable(IERC20))
operator: public(immutable(address))

# What was paid under each withdrawal id; 0 means not paid.
paid: public(HashMap[bytes32, uint256])


@deploy
def __init__(token_: address, operator_: address):
    token = IERC20(token_)
    operator = operator_


@external
@nonreentrant
def deposit(user_id: String[64], amount: uint256):
    """
    @notice Moves the sender's money into custody on behalf of a user, whom the contract does not know.
    """
    assert amount > 0, "nothing to deposit"
    assert extcall token.transferFrom(msg.sender, self, amount, default_return_value=True), "transfer refused"
    log Deposit(sender=msg.sender, user_id=user_id, amount=amount)


@external
@nonreentrant
def withdraw(withdrawal_id: bytes32, receiver: address, amount: uint256):
    """
    @notice Pays a withdrawal; the same id a second time is refused, whatever it asks for.
    """
    assert msg.sender == operator, "not the operator"
    assert amount > 0, "nothing to withdraw"
    assert self.paid[withdrawal_id] == 0, "already paid"
    self.paid[withdrawal_id] = amount
    assert extcall token.transfer(receiver, amount, default_return_value=True), "transfer refused"
    log Withdrawal(withdrawal_id=withdrawal_id, receiver=receiver, amount=amount)
