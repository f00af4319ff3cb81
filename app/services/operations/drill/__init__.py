"""Drills: what becomes of fires while schedulers are killed, frozen or cut off."""
