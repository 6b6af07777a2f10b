"""What everything else stands on: files, progress, threads, devices, settings in YAML, tables. Nothing of physics."""
