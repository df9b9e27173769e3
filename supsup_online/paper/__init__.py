"""The paper beside the core: its scenarios, its baselines and its figures. The core never imports this package."""
