"""The quality of images: features of drawn and of real ones compared, and a judge of their classes."""
