"""The numpy engine: readable, float32, exact, everywhere. The other engines are held against it."""
