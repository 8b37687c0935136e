"""The implementation of `AttributionMonitor` and `AttributionTrainerCallback`."""
