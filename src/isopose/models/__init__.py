"""The networks: localization, pose (STN1), crop (STN2), U-Net, and their composition."""
