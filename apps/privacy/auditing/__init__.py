"""What the mechanism gives, put to the test: bounds of epsilon, checks of noise, sensitivity and ledger, and a released set's evidence."""
