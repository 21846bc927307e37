"""What several test rooms share: real servers, free ports."""
