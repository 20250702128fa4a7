"""Figures for people and programs, from run directories alone."""
