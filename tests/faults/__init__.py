"""What a conversion leaves when it is killed, or when the system refuses one of its calls."""
