"""supsup-daemon: the process around `supsup_online`. Kafka in, Redis out, signals, logs and the command line."""
