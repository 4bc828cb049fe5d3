"""Commands that exchange sets with other programs: import and export."""
