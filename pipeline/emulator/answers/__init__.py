"""The emulator's answers: text and values that fit the request, computed from the request alone."""
