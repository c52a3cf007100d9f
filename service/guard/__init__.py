"""Guard: who may ask, how much, and when; none of it knows a protocol but the interceptor."""
