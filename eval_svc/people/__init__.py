"""What people say about models: test sessions, labels, blind comparisons, agreement, defects."""
