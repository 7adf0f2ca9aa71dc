"""What any long piece of work needs: several processes, a bar, an end in good order."""
