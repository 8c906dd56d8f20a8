"""Thin translations between host programs and the functional."""
