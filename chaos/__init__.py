"""What breaks meanwhile: child processes, faults and the schedule that injects them."""
