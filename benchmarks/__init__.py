"""Where the performance and accuracy figures come from: one command each."""
