"""What `AttributionMonitor` and `AttributionTrainerCallback` do in the runs that they watch."""
