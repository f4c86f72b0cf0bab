"""What other code does, written anew to be measured against."""
