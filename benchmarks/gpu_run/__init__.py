"""`make gpu`: all the evidence that one CUDA device can give in nine minutes."""
