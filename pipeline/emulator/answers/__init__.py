"""What the emulator answers: text and values that fit what is asked, made from the request alone."""
