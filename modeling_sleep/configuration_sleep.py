from modeling_sleep.configuration.configuration_sleep import MAX_SLEEP_PASSES, SleepConfig  # folders hold that file
