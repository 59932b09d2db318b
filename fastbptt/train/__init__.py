"""The application `fastbptt train`: a recurrent net that reads a text, character by character, and predicts what comes next."""
