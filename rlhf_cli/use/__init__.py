"""After training: trained policies and reward models at work."""
