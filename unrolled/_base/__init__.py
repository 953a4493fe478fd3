"""The ground floor: checks, numbers, programs, threads, files and text."""
