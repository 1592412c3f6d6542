"""How the losses of several tasks become one step."""
