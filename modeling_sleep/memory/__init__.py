"""Memories in use: conversations, pictures, and a command. What a memory is, memory_sleep.py says."""
