"""Published methods as short modules over fokker's ops, one file a method."""
