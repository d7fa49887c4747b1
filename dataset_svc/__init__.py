"""The dataset service: a team's own conversation logs become cleaned, labelled, split and counted items."""
