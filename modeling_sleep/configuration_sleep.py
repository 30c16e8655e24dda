from modeling_sleep.configuration.configuration_sleep import SleepConfig as SleepConfig  # saved folders hold that file
