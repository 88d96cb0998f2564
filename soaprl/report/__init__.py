"""What people read: tables that set strategies side by side."""
