"""Parts shared by the training loops: optimizer and EMA, run directory, losses, discriminator."""
