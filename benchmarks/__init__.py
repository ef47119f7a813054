"""Where the performance and accuracy figures come from: one command each."""

import pipeline  # noqa: F401 # before torch: it says how long threads spin
