"""Reinforcement learning from preferences: rewards, advantages, losses, rollouts."""
