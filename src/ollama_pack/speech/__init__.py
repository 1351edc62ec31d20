"""Voice transcription: recordings of any usual format, long ones too, to text with times, also offline."""
