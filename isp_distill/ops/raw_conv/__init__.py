"""The student's first convolution, on the sensor's own layout."""
