"""What every checkpoint carries for programs that load it without moonflow; training reads media with it too."""
