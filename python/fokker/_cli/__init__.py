"""The commands behind ``python -m fokker``, one module each."""
