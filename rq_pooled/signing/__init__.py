"""What is signed and verified of jobs, and what they may call. Knows neither Redis nor workers."""
