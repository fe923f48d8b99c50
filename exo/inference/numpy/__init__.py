"""The numpy engine: readable, float32, exact, available everywhere. Other engines are compared with
it.
"""
