"""Using trained models: nothing here trains, and nothing in the library needs it."""
