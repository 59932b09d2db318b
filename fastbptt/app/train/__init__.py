"""The application `fastbptt train`: a recurrent net learns a text, character by character, or one of the long-memory tasks."""
